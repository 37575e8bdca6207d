"""Model families behind one small protocol (`base.Adapter`); `registry` knows them by name."""
