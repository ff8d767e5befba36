//! The operator's own CA, its leaf certificates and the key that signs cold-start plans.
