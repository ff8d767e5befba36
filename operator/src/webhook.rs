//! Admission: `/inject` and `/validate`.
