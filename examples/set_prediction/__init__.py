"""Set prediction: from a picture to the set of its objects' properties (Table 1 of the paper)."""
