//! Ordered CPU stages on threads with bounded channels.
