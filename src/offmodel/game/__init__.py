"""The poisoning game: zero-sum games over named moves, solved at once, by commitment and as a tree."""
