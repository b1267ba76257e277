"""`python -m fetchbox.cli`: the same as `fetchbox`."""

from fetchbox.cli import main

main()
