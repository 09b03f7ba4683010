"""Params to params: transforms and the combinators that compose them."""
