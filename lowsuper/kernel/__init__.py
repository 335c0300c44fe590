"""Everything that speaks to the kernel: each module owns one subject, none decides."""
