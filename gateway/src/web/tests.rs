//! The admin API without a network.
