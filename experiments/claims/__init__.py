"""The claims, one module each: what is run, what is measured, what is found."""
