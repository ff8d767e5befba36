//! The FetchrProxy `default` in the operator's namespace, for pods without a proxy of their own.
