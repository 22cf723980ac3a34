"""Compare the meta-gradients of networks that people use with a hand-written loop, and meta-train each of them.

Every network gets one second-order outer step of MAML in float64, by each way of running tasks, and is then trained,
tested and adapted in float32. The result is a row of a table in markdown; what torch.vmap refuses is said in comments.
"""

import argparse
import importlib
import math
import re
import sys
from fnmatch import fnmatch
from importlib.metadata import version

from network_cases import CASES, Case
from network_checks import compare, trained

from lightning_meta.errors import one_line

HEADER = ("network", "library", "ways", "largest error", "second-order part", "fit, test, adapt", "what it needs")


def row(name: str, case: Case, *, with_training: bool = True) -> tuple[list[str], bool]:
    """The cells of the table for one network, and whether all of it is right."""
    found = compare(case)
    ways = ", ".join(way for way in ("vmap", "loop") if way in found.errors)
    if "vmap" in found.refusals:
        ways += f" (vmap cannot run {layer_of(found.refusals['vmap'])})"
    error = f"{found.largest:.0e}"
    only_first_order = not found.is_right and found.is_right_in_first_order
    if not found.is_right:
        error += f" (wrong); first order {found.errors.get('first order', math.nan):.0e}"
    for way, refusal in found.refusals.items():
        print(f"<!-- {name}, {way}: {' '.join(refusal.split())} -->", flush=True)
    training, is_right = "-", found.is_right
    if with_training:
        after = trained(case, first_order=only_first_order)
        is_right = is_right and after.is_right
        training = "yes" if after.is_right else f"no: error {after.error:.0e}, {len(after.fallbacks)} warnings"
        training += " (`first_order=True`)" * only_first_order
        if after.fallbacks and "vmap" in found.errors:
            ways += f" (vmap only without {layer_of(after.fallbacks[0])})"
    return [name, case.library, ways, error, f"{found.second_order_part:.0e}", training, case.needs], is_right


def layer_of(message: str) -> str:
    """The kind of layer that a message of the package names."""
    named = re.search(r"layer '[^']*' \((\w+)\)", message)
    return named[1] if named else "it"


def main() -> int:
    """Print the table; the exit status is 1 if a row of it is not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["*"], help="names or patterns such as 'ViT*'; all by default")
    parser.add_argument("--libraries", nargs="+", help="networks of these alone, such as torchvision timm")
    parser.add_argument("--no-training", action="store_true", help="compare meta-gradients alone")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    arguments = parser.parse_args()
    chosen = {
        name: case
        for name, case in CASES.items()
        if any(fnmatch(name, pattern) for pattern in arguments.networks)
        and (arguments.libraries is None or case.library in arguments.libraries)
    }
    if arguments.list:
        print("\n".join(f"{name} ({case.library})" for name, case in chosen.items()))
        return 0
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    is_right, libraries = True, {"torch", "lightning"}
    for name, case in chosen.items():
        try:
            importlib.import_module(case.library.replace("-", "_"))
        except ImportError as error:
            print(f"<!-- {name} is left out: {error} -->", flush=True)
            continue
        libraries.add(case.library)
        try:
            cells, good = row(name, case, with_training=not arguments.no_training)
        except Exception as error:  # the other networks are still of interest
            cells, good = [name, case.library, f"failed: {one_line(error)}", *[""] * 3, case.needs], False
        is_right = is_right and good
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n" + ", ".join(f"{library} {version(library)}" for library in sorted(libraries)))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
