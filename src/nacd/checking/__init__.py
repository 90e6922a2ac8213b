"""`nacd check`: how many rows a data set needs, and whether a choice of them beats random ones."""
