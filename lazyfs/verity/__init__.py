"""Hash trees over blocks, as dm-verity and fs-verity have them, and signatures over their roots."""
