//! Tasks in every state.
