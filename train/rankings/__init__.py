"""Rankings, the training data: their schema, the reader of JSON Lines and the validation split.

Everything here needs the standard library only, so that tools which only look at data start fast.
"""
