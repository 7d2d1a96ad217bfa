//! The service from outside: its stores, its two listeners, and what happens when things fail.
