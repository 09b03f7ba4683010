"""A function's hidden axes as plain data, and the function at other sizes of them."""
