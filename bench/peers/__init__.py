"""Other programs of this kind, each optional: what cannot be had is named in the report."""
