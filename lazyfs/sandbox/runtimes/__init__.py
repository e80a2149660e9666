"""runsc, crun, runc and bubblewrap behind one interface."""
