"""The SAM 2 network: records, backbone, prompt and mask heads, memory."""
