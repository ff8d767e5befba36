local current, last = generation('', 0)
return census(current, term(current), last)
