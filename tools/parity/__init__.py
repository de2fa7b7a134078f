"""Our quantities beside those of the reference's golden files, one module a kind of case."""
