"""The tables of contents of an image's layers, however each is to be had."""
