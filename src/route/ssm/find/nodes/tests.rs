//! Nodes of every kind.
