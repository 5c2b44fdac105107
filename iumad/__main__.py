"""`python -m iumad` is the command `iumad`; torchrun starts it this way."""

from iumad.cli import main

main()
