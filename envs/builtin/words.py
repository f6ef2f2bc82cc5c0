"""Short names that the tasks are about: few and common, so that a small tokenizer knows them whole."""

PEOPLE: tuple[str, ...] = (
    "ada", "ben", "cleo", "dora", "eli", "finn", "gina", "hugo", "iris", "jack", "kira", "leo",
    "mira", "nico", "olga", "paul", "rosa", "sam", "tina", "zoe",
)  # fmt: skip
THINGS: tuple[str, ...] = (
    "axe", "bag", "bell", "book", "cup", "drum", "fan", "fig", "fork", "hat", "jar", "kite", "lamp",
    "map", "mug", "nut", "oar", "pan", "pen", "ring", "rope", "saw", "soap", "tray",
)  # fmt: skip
PLACES: tuple[str, ...] = (
    "attic", "barn", "bath", "cabin", "cave", "den", "dock", "hall", "loft", "mill", "nook", "pier",
    "porch", "shed", "stair", "tower", "vault", "well",
)  # fmt: skip
DAYS: tuple[str, ...] = ("mon", "tue", "wed", "thu", "fri")
