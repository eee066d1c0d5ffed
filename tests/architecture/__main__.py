"""Print everything that breaks a rule of this folder: ``python -m tests.architecture``; exits with 1 if anything does."""

from __future__ import annotations

import sys

from tests.architecture import import_rules, name_rules, structure_rules


def main() -> int:
    """Run all checks."""
    failed = False
    for title, rules in (("imports", import_rules), ("sizes and rooms", structure_rules), ("old names", name_rules)):
        found = rules.violations()
        print(f"{title}: {len(found) or 'no'} violation{'' if len(found) == 1 else 's'}", *found, sep="\n  ")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
