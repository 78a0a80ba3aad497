"""What a GPU is measured with: launches, requests and the predictor, in stages that go on where they stopped."""
