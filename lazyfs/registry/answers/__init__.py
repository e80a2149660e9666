"""What registries answer, as values: headers, ranges, tokens and referrers."""
