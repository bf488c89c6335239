"""Review: what is added to the teacher data on purpose: conflicts rows on demand, and answers corrected by people.

Both land in the landing folder like any other teacher row and go the same way from there. Asking a teacher model for
new rows belongs to `teacher`.
"""
