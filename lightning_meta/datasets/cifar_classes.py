"""Which classes of CIFAR-100 are for training, validation and tests."""

_CIFAR_FS = {
    "train": """
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud
        cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower
        lion lizard lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate
        porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar
        sunflower tank tiger train trout tulip turtle willow_tree wolf
    """,
    "val": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea
        shark television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper
        table telephone wardrobe whale woman worm
    """,
}
CIFAR_FS = {split: names.split() for split, names in _CIFAR_FS.items()}
"""The classes of CIFAR-FS. Paper: Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136."""

FC100 = {
    "train": (1, 2, 3, 4, 5, 6, 9, 10, 15, 17, 18, 19),
    "val": (8, 11, 13, 16),
    "test": (0, 7, 12, 14),
}
"""The superclasses of FC100, by their numbers. Paper: Oreshkin, Rodríguez, Lacoste 2018, arXiv:1805.10123."""
