"""`python -m rl` is the console command `dorado`."""

from rl.cli import main

main()
