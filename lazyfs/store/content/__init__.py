"""The content file of a layer and its presence map: which bytes are resident."""
