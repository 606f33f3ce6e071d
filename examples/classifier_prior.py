"""Semantic knowledge: log p(digit | x_t), by the classifier of digit_classifier.py."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import digit_classifier

DIGIT = int(os.environ.get("DIGIT", "7"))
PARAMS = digit_classifier.load()


def log_p_of_x_t(x_t, level, cond):
    return digit_classifier.log_probabilities(PARAMS, x_t, level)[:, DIGIT]
