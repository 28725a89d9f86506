"""Pictures with nothing in them to recognise: one colour, or noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def is_featureless(rgb_HWC: NDArray[np.uint8]) -> bool:
    """True when no structure survives a blur: nothing to find by, and nothing that could be verified."""
    grey_HW = cv2.resize(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY), (112, 112), interpolation=cv2.INTER_AREA)
    blurred_HW = cv2.GaussianBlur(grey_HW.astype(np.float32), (0, 0), 3.0)
    return bool(blurred_HW.std() < 1.0)
