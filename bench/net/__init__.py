"""Two hosts and what runs between them: the bed, the contenders, the scenarios."""
