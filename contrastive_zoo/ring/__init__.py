"""Sums over the pairs of the rows of all processes, where no process holds more than its own rows and a visiting block.

Blocks of rows visit the other processes in turn (`passing.py`). Where rows are their own keys, a block visits half of the
processes, so that any two blocks meet once: in the middle round of an even number of processes they meet on both sides, and
each side takes half of the pairs (`course.py`). Separate keys visit all processes. In the backward pass a visiting block comes
with the gradient of its rows, to which each process adds, and which goes home after the last round (`passes.py`).

Sums are numbers per row, so they are not passed round: each process gets the sums over the pairs that it visited, for the rows
of all processes, and the caller puts them together as those of the parts of a sweep. Rows stay with their process, and their
gradients carry the number of processes as a factor, like those of `contrastive_zoo.processes.gather.gather_features`.

With P processes and n rows of D features on each of them, a process sends to others

    rows that are their own keys    floor(P / 2) n D e forward, floor(P / 2) n D (e + f) backward: rows, and gradients
    separate keys                   (P - 1) n D e forward, (P - 1) n D (e + f) backward, for n keys
    sums of classes                 (P - 1) n D f forward, as much backward, for n samples

bytes, where f is 4, or 8 in double precision, and e is 2 for rows that were rounded to half precision, else f. A sum over pairs
of a class sends nothing if no class is on two processes, as far as the host knows the classes.
"""
