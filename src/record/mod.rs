//! Record batches: Kafka's record batch format, magic 2 (KIP-98), as pure functions over bytes.
