"""Learning from a classifier: its decision boundary, its errors, training sets made from it, and compactions ranked."""
