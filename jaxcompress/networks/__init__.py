"""What a function's hidden axes are, and the function run at other sizes of them."""
