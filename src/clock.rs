//! Wall and monotonic time, real or by hand; nothing else asks the time.
