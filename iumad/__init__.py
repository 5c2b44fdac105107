"""Incremental unified multimodal anomaly detection: IB-IUMAD and its study."""
