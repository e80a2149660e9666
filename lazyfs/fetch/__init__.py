"""``ensure``: the only way in which a byte of an image becomes resident."""
