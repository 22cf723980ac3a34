"""A small set of texts that is made of templates, for a first try and for tests."""

from itertools import product

_OPENINGS = ("", "please ", "can you tell me ")
_TOPICS = {
    "card lost": ("what to do if I {lost} my {card}", "how to block a {card} that I {lost}"),
    "card order": ("how to order {new} {card}", "when {new} {card} arrives"),
    "pin": ("how to change the code of my {card}", "why the {card} does not take my code {when}"),
    "rate": ("what {money} are worth {when}", "how {money} are exchanged {when}"),
    "transfer": ("how to send {money} to {person}", "why the money for {person} has not arrived {when}"),
    "weather": ("whether it rains in {city} {when}", "how warm it is in {city} {when}"),
    "train": ("when the next train leaves for {city}", "whether the train to {city} is late {when}"),
    "hotel": ("where to stay in {city} {when}", "what a room in {city} costs {when}"),
    "restaurant": ("where to eat {dish} in {city}", "whether they serve {dish} {when}"),
    "recipe": ("how to cook {dish}", "how long {dish} stays in the oven {when}"),
    "shopping": ("where to buy {thing} in {city}", "what {thing} costs {when}"),
    "repair": ("how to mend {thing} that is broken", "who repairs {thing} in {city}"),
    "return": ("how to send {thing} back", "when I get my money for {thing} back"),
    "alarm": ("how to set an alarm for {when}", "why my alarm did not ring {when}"),
    "calendar": ("when I meet {person}", "what I have planned with {person} {when}"),
    "call": ("what number {person} has", "how to call {person} {when}"),
    "music": ("which songs {person} likes", "what music they play in {city} {when}"),
    "film": ("which film to see with {person} {when}", "where they show films in {city} {when}"),
    "doctor": ("where to find a doctor in {city} {when}", "whether the doctor has time for {person} {when}"),
    "plane": ("which planes fly to {city} {when}", "how to change my flight to {city}"),
    "taxi": ("how to get a taxi in {city} {when}", "what a taxi to {person} costs {when}"),
    "sport": ("who played in {city} {when}", "whether {person} won the match {when}"),
    "birthday": ("when {person} has a birthday", "what to give to {person} for a birthday"),
    "library": ("whether the library in {city} is open {when}", "how long I may keep a book for {person}"),
    "lights": ("how to turn off the lights {when}", "why the lights in {city} went out {when}"),
    "password": ("how to change the password of {person}", "why my password does not work {when}"),
    "delivery": ("where the parcel with {thing} is", "whether {thing} can be delivered {when}"),
    "language": ("how to say {dish} in the language of {city}", "which language they speak in {city}"),
}
_SLOTS = {
    "lost": ("lost", "cannot find", "left somewhere"),
    "card": ("card", "credit card", "bank card"),
    "new": ("a new", "another", "a second"),
    "when": ("today", "tomorrow", "on Sunday", "next week"),
    "money": ("ten dollars", "fifty euros", "a hundred pounds"),
    "person": ("my sister", "Anna", "the boss", "a friend"),
    "city": ("Paris", "Rome", "Tokyo", "Lima"),
    "dish": ("soup", "rice", "an apple pie"),
    "thing": ("a bicycle", "a lamp", "shoes"),
}


def generated_texts(each: int = 24) -> list[tuple[str, str]]:
    """Questions about 28 topics, made of templates and words to fill in: pairs (text, topic), always the same.

    Args:
        each: The most texts of a topic.

    Example:
        >>> texts = generated_texts()
        >>> len(texts), texts[0]
        (666, ('what to do if I lost my card', 'card lost'))
    """
    found = []
    for topic, templates in _TOPICS.items():
        of_topic = [
            opening + template.format(**dict(zip(names, words, strict=True)))
            for opening, template in product(_OPENINGS, templates)
            for names in [[name for name in _SLOTS if f"{{{name}}}" in template]]
            for words in product(*(_SLOTS[name] for name in names))
        ]
        step = max(1, len(of_topic) // each)  # of all templates
        found += [(text, topic) for text in of_topic[::step][:each]]
    return found
