"""The signatures of an image: where they are found, and which policy judges them."""
