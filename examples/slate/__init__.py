"""SLATE: pictures from slots through tokens (Tables 2 and 7, Figures 2 to 5 of the paper)."""
