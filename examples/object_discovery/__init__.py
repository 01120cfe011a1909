"""Object discovery: a picture as a mixture of pictures, one for each slot.

Tables 3, 5 and 6 and Figure 6 of the paper.
"""
