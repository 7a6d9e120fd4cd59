"""The operations of the forward pass on each kind of device; `backend` names them."""
