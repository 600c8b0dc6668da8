"""The closed vocabulary of the pictures: colors, shapes, characters, words."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 50),
    "green": (44, 160, 60),
    "blue": (35, 85, 200),
    "purple": (130, 60, 175),
    "pink": (245, 140, 190),
    "brown": (125, 75, 40),
    "gray": (128, 128, 128),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
# I, O, Q and Z are left out of tables: at a few pixels they are 1, 0, 0 and 2 to any reader.
CHARACTERS = "0123456789ABCDEFGHJKLMNPRSTUVWXY"
# What a patch of the picture can show of a glyph: table characters, letters of words, handwritten digits.
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# fmt: off
WORDS = (
    "BANK", "BOOK", "BUS", "CAFE", "CITY", "DOCK", "DOOR", "EAST", "EXIT", "FARM", "FISH", "FOOD", "FUEL",
    "GATE", "GOLF", "HALL", "HELP", "HILL", "HOME", "INN", "JAZZ", "KIDS", "KING", "LAKE", "LIFT", "LOST",
    "MAIL", "MENU", "MILK", "NEWS", "NORTH", "OPEN", "PARK", "PIER", "POOL", "PORT", "QUIZ", "REST", "ROAD",
    "SALE", "SHOP", "SLOW", "SOUP", "STOP", "TAXI", "TEAM", "TOWN", "TRAM", "WALK", "WEST", "YARD", "ZOO",
)
# fmt: on
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Halves of the picture: which coordinate of a center (0: across, 1: down) lies on which side of the middle.
HALVES = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}
# Of the largest pictures: one character to a patch on a grid of 24 x 24.
MAX_TABLE_SIDE = 24
