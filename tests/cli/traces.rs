//! What a collector is shown of a conversation.
