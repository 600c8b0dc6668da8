"""Wordings of the questions of `scenes`: form -> text of the question, with fields in braces.

They only have words of `scenes` and `easy_vqa`, as new words would test vocabulary rather than vision.
"""

from collections.abc import Mapping

Wording = Mapping[str, str]

_PLAIN: Wording = {
    "background": "What color is the background?",
    "dominant": "What color are most {noun}?",
    "existence": "Is there {thing}?",
    "existence_half": "Is there {thing} in the {half} half?",
    "count": "How many {noun} are there?",
    "count_half": "How many {noun} are in the {half} half?",
    "shape": "What shape is the {color} object?",
    "color": "What color is the {shape}?",
    "position": "Where is the {name}?",
    "neighbor_color": "What color is the object {relation} the {name}?",
    "neighbor_shape": "What shape is the object {relation} the {name}?",
    "cell": "What character is in {row}, {column}?",
    "sign": "What {what} is on the {color} sign?",
    "sign_color": "What color is the sign that says {text}?",
    "digit": "What digit is handwritten?",
    "digit_color": "What digit is handwritten in {color}?",
}
_SHIFTED: Wording = {
    "background": "what is the color of the background?",
    "dominant": "what is the color of most {noun}?",
    "existence": "does the image contain {thing}?",
    "existence_half": "does the {half} half of the image contain {thing}?",
    "count": "how many {noun} are in the image?",
    "count_half": "how many {noun} are in the {half} half of the image?",
    "shape": "what is the shape of the {color} object?",
    "color": "what is the color of the {shape}?",
    "position": "where is the {name} in the image?",
    "neighbor_color": "what is the color of the object {relation} the {name}?",
    "neighbor_shape": "what is the shape of the object {relation} the {name}?",
    "cell": "what character does {row}, {column} contain?",
    "sign": "what {what} does the {color} sign contain?",
    "sign_color": "what is the color of the sign that says {text}?",
    "digit": "what handwritten digit is present?",
    "digit_color": "what is the digit handwritten in {color}?",
}
_VARIED: tuple[Wording, ...] = (
    {
        "background": "In the image, what color is the background?",
        "dominant": "In the image, what color are most {noun}?",
        "existence": "In the image, is there {thing}?",
        "existence_half": "In the {half} half, is there {thing}?",
        "count": "How many {noun} does the image contain?",
        "count_half": "How many {noun} does the {half} half contain?",
        "shape": "The {color} object is of what shape?",
        "color": "The {shape} is of what color?",
        "position": "In the image, where is the {name}?",
        "neighbor_color": "The object {relation} the {name} is of what color?",
        "neighbor_shape": "The object {relation} the {name} is of what shape?",
        "cell": "In {row}, {column}, what character is there?",
        "sign": "The {color} sign says what {what}?",
        "sign_color": "The sign that says {text} is of what color?",
        "digit": "In the image, what digit is handwritten?",
        "digit_color": "In {color}, what digit is handwritten?",
    },
    {
        "background": "the background is what color?",
        "dominant": "most {noun} are what color?",
        "existence": "is {thing} present?",
        "existence_half": "is {thing} present in the {half} half?",
        "count": "what number of {noun} is present?",
        "count_half": "what number of {noun} is in the {half} half?",
        "shape": "the {color} object is what shape?",
        "color": "the {shape} is what color?",
        "position": "the {name} is where in the image?",
        "neighbor_color": "the object {relation} the {name} is what color?",
        "neighbor_shape": "the object {relation} the {name} is what shape?",
        "cell": "what is the character in {row}, {column}?",
        "sign": "what is the {what} on the {color} sign?",
        "sign_color": "the sign that says {text} is what color?",
        "digit": "what is the handwritten digit?",
        "digit_color": "what is the {color} handwritten digit?",
    },
    {
        "background": "What is the background color?",
        "dominant": "What is the color that most {noun} are?",
        "existence": "There is {thing}: yes or no?",
        "existence_half": "There is {thing} in the {half} half: yes or no?",
        "count": "What is the number of {noun}?",
        "count_half": "What is the number of {noun} in the {half} half?",
        "shape": "What shape is the object in {color}?",
        "color": "What color is the object that is a {shape}?",
        "position": "Where does the image contain the {name}?",
        "neighbor_color": "What color is the object that is {relation} the {name}?",
        "neighbor_shape": "What shape is the object that is {relation} the {name}?",
        "cell": "What character does the image contain in {row}, {column}?",
        "sign": "What {what} does the {color} sign say?",
        "sign_color": "What color is the sign with {text}?",
        "digit": "What digit is present?",
        "digit_color": "What digit is there in {color}?",
    },
)
# `plain` is that of the training of the embedded backbones. Predictors may be trained on `varied` to become
# independent of the wording; `shifted` is kept for tests.
WORDINGS: Mapping[str, tuple[Wording, ...]] = {"plain": (_PLAIN,), "varied": _VARIED, "shifted": (_SHIFTED,)}
