"""SAM 2, segment anything in images and videos, with a video predictor that skips frames the network need not see."""

# Follows the 1.1 line that it stands in for, so that a requirement of `sam2>=1.1` is met by this package.
__version__ = "1.2.0"
