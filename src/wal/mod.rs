//! Write-ahead log: pages, records, events, digests.
